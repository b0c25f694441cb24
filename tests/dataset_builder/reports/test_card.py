"""The front matter of a data card carries the licences that were given, as the hub reads them."""

from typing import Any

import pytest

from dataset_builder.reports.card import in_markdown, licence_fields, named_licence


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC BY-SA 4.0"], {"license": "cc-by-sa-4.0"}),
        (["cc-by-4.0", "CC BY 4.0"], {"license": "cc-by-4.0"}),
        (["apache-2.0", "cc0-1.0"], {"license": ["apache-2.0", "cc0-1.0"]}),
        (
            ["SA-1B Dataset Research License"],
            {
                "license": "other",
                "license_name": "sa-1b-dataset-research-license",
                "license_details": "SA-1B Dataset Research License",
            },
        ),
        (
            ["Ours, see https://example.org/terms.", ""],
            {
                "license": "other",
                "license_name": "ours-see-https-example.org-terms.-not-stated-for-all-images",
                "license_link": "https://example.org/terms",
            },
        ),
        ([""], {"license": "other", "license_name": "not-stated-for-all-images"}),
    ],
)
def test_licences_reach_the_hub(licences: list[str], expected: dict[str, Any]) -> None:
    assert licence_fields(licences) == expected


@pytest.mark.parametrize(
    ("licences", "named"),
    [
        (["CC BY-SA 4.0"], "cc-by-sa-4.0"),
        (["apache-2.0", "cc0-1.0"], "apache-2.0; cc0-1.0"),
        (["Ours,\nsee below"], "Ours, see below"),
        (["Ours", ""], ""),
        (["many words " * 20, ""], ""),
        ([""], ""),
    ],
)
def test_the_licence_of_a_card_is_read_back(licences: list[str], named: str) -> None:
    fields = licence_fields(licences)
    assert named_licence(fields) == named
    assert len(fields.get("license_name", "")) <= 60


def test_texts_of_others_stay_in_their_line() -> None:
    assert in_markdown("a | b\n\n<script>x</script>") == "a \\| b &lt;script>x&lt;/script>"
