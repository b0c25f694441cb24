"""The front matter of a data card carries the licences that were given, as the hub reads them."""

from typing import Any

import pytest

from dataset_builder.reports.card import licence_fields


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["CC BY-SA 4.0"], {"license": "cc-by-sa-4.0"}),
        (["cc-by-4.0", "CC BY 4.0"], {"license": "cc-by-4.0"}),
        (["apache-2.0", "cc0-1.0"], {"license": ["apache-2.0", "cc0-1.0"]}),
        (["SA-1B Dataset Research License"], {"license": "other", "license_name": "SA-1B Dataset Research License"}),
        (
            ["Ours, see https://example.org/terms.", ""],
            {
                "license": "other",
                "license_name": "Ours, see https://example.org/terms.; not stated for all images",
                "license_link": "https://example.org/terms",
            },
        ),
        ([""], {"license": "other", "license_name": "not stated for all images"}),
    ],
)
def test_licences_reach_the_hub(licences: list[str], expected: dict[str, Any]) -> None:
    assert licence_fields(licences) == expected
