"""BLIP as T2I-CompBench asks it: how probable "yes" is against "no" as the first word of the answer to a question.

Source: Huang et al. 2023 (arXiv 2307.06350) and the authors' code. transformers' BlipForQuestionAnswering holds the same
weights, but neither its `generate` nor its `forward` gives these probabilities, so its three parts are called here:

- A question's first token is BLIP's own [ENC], as in its training; transformers' processor leaves BERT's [CLS] there.
- The answer is started with [DEC], transformers' `bos_token_id`; [ENC] is the token after it: both come after BERT's own.
- Questions go through one by one: in a batch, transformers' decoder looks at their padding too, whatever the mask says.
- Images are scaled to 480 x 480. transformers' checkpoint holds the table of positions resampled for 384: it is resampled back.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from foundry.errors import UserError
from trainer.evaluation.judges.models import JudgeModel, Placement, check_finite

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "blip"
_WIDTH, _NUM_HEADS = 768, 12
"""Heads of BERT in the authors' configuration. With transformers' default of 8 heads all tensors have the same shapes."""
_MAX_QUESTION_TOKENS = 35
_NOT_ASKED = re.compile(r'[.!"()*#:;~]')


class BlipVqa:
    """A loaded BLIP for visual question answering. Deterministic."""

    def __init__(self, model: Any, processor: Any, *, image_px: int) -> None:
        self.model = model
        self.processor = processor
        self.image_px = image_px

    def yes_probabilities(self, image: npt.NDArray[np.uint8], questions: Sequence[str]) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of each question about an image (H, W, 3)."""
        import torch

        side = {"height": self.image_px, "width": self.image_px}
        pixels = self.processor.image_processor(images=image, size=side, return_tensors="pt")["pixel_values"]  # (1, 3, S, S)
        yes, no = self.processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
        with torch.inference_mode():
            pixels = pixels.to(self.model.device, self.model.dtype)
            patches = self.model.vision_model(pixels, interpolate_pos_encoding=True)[0]  # (1, P, D)
            logits = [self._first_logits(patches, cleaned_question(question)) for question in questions]
        return [float(torch.sigmoid(one[yes] - one[no])) for one in logits]  # the softmax's sum cancels out

    def _first_logits(self, patches: "torch.Tensor", question: str) -> "torch.Tensor":
        """Logits (vocabulary,) of the first token of the answer."""
        import torch

        model, text = self.model, self.model.config.text_config
        tokens = self.processor.tokenizer(question, truncation=True, max_length=_MAX_QUESTION_TOKENS, return_tensors="pt")
        tokens = tokens["input_ids"].to(model.device)  # (1, L)
        tokens[:, 0] = text.bos_token_id + 1  # [ENC]
        read = model.text_encoder(input_ids=tokens, encoder_hidden_states=patches)[0]  # (1, L, D)
        start = torch.full((1, 1), text.bos_token_id, device=model.device)  # [DEC]
        logits: torch.Tensor = model.text_decoder(input_ids=start, encoder_hidden_states=read).logits[0, 0]
        check_finite(logits, name=model.name_or_path)
        return logits.float()


def load_blip(source: JudgeModel, placement: Placement, *, image_px: int) -> BlipVqa:
    """Reads the weights. Raises UserError for another kind of model."""
    from transformers import BlipForQuestionAnswering, BlipProcessor

    if source.model_type != MODEL_TYPE:
        raise UserError(f"{source.name} is a {source.model_type}: expected a BLIP for visual question answering")
    model = source.load_network(BlipForQuestionAnswering.from_pretrained, placement)
    text = model.config.text_config
    if text.hidden_size == _WIDTH and text.num_attention_heads != _NUM_HEADS:
        raise UserError(
            f"{source.name}: config.json gives its BERT {text.num_attention_heads} heads, BLIP was trained with {_NUM_HEADS}: "
            f'write "num_attention_heads": {_NUM_HEADS} into its text_config'
        )
    return BlipVqa(model, source.load(BlipProcessor.from_pretrained), image_px=image_px)


def cleaned_question(question: str) -> str:
    """The question as BLIP's training saw it: in lower case, without the signs that it leaves out."""
    return _NOT_ASKED.sub("", question.lower()).rstrip(" ")
