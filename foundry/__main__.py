"""The console script `t2i` as `python -m foundry`, where the folder of scripts is not on the path."""

from foundry.t2i import main

raise SystemExit(main())
