"""What stands beside an image: a caption (.txt, .caption), a class label (.cls), a JSON, also SA-1B's JSON of masks.

Source: SA-1B's README: {"image": {"image_id", "width", "height", "file_name"}, "annotations": [{"segmentation", "area", ...}]}.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from foundry.images.metadata import Carried, map_columns, merge
from foundry.units.rejection import ImageError


@dataclass(frozen=True, kw_only=True)
class SidecarData:
    """All that is known of an image beside its bytes. The last two are None unless SA-1B's masks were given.

    num_masks counts them; mask_area_px is the sum of their areas in pixels of the original, overlaps counted twice.
    """

    carried: Carried = field(default_factory=Carried)
    num_masks: int | None = None
    mask_area_px: int | None = None


def parse_sidecars(files: Iterable[tuple[str, bytes, str]]) -> SidecarData:
    """Reads (suffix, bytes, where) in order; where two files know the same thing, the earlier one counts.

    Of a JSON, the top-level scalar fields are kept and those of SA-1B's `image`; nested ones are not, annotations least of all.
    Raises ImageError("bad_sidecar") for text that is not UTF-8 and for JSON that is broken or no object.
    """
    data = SidecarData()
    for suffix, content, where in files:
        found = _parse(suffix, content, where)
        data = SidecarData(
            carried=merge(data.carried, found.carried),
            num_masks=found.num_masks if data.num_masks is None else data.num_masks,
            mask_area_px=found.mask_area_px if data.mask_area_px is None else data.mask_area_px,
        )
    return data


def _parse(suffix: str, content: bytes, where: str) -> SidecarData:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImageError("bad_sidecar", f"{where} is not UTF-8: {error}") from error
    if suffix == ".json":
        return _parse_json(text, where)
    if suffix == ".cls":
        return SidecarData(carried=Carried(class_label=text.strip() or None))
    return SidecarData(carried=Carried(alt_text=text.strip() or None))


def _parse_json(text: str, where: str) -> SidecarData:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError("bad_sidecar", f"{where} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ImageError("bad_sidecar", f"{where} holds a {type(fields).__name__}, expected a JSON object")
    image = fields.get("image")
    try:
        carried = map_columns({**(image if isinstance(image, dict) else {}), **fields})
    except ValueError as error:
        raise ImageError("bad_sidecar", f"{where} holds text that is not valid Unicode") from error
    num_masks, mask_area_px = _masks(fields.get("annotations"))
    return SidecarData(carried=carried, num_masks=num_masks, mask_area_px=mask_area_px)


def _masks(annotations: object) -> tuple[int | None, int | None]:
    """Number and total area; None for what the annotations do not tell."""
    if not isinstance(annotations, list) or not all(isinstance(annotation, dict) for annotation in annotations):
        return None, None
    areas = [annotation.get("area") for annotation in annotations]
    if not all(isinstance(area, int | float) and not isinstance(area, bool) for area in areas):
        return len(areas), None
    return len(areas), round(sum(areas))
