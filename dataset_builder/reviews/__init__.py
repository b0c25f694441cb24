"""Reviews of captions by people: edits and flags, as files of a run, and what they change."""
