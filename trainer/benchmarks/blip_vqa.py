"""BLIP as T2I-CompBench asks it: how probable "yes" is beside "no" as the first word of the answer to a question.

Source: Huang et al. 2023 (arXiv 2307.06350) and the authors' code. transformers' BlipForQuestionAnswering holds the same
weights, but neither its `generate` nor its `forward` gives these probabilities, so its three parts are called here:

- A question's first token is BLIP's own [ENC], as in its training; transformers' processor leaves BERT's [CLS] there.
- The answer is started with [DEC], transformers' `bos_token_id`; [ENC] is the token after it: both stand behind BERT's own.
- The decoder sees the question without its padding; `generate` would show it the padding too.
- Images are scaled to 480 x 480. transformers' checkpoint holds the table of positions resampled for 384: it is resampled back.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dataset_builder.command_line import UserError
from trainer.benchmarks.judge_model import JudgeModel, Placement

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "blip"
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

        if not questions:
            return []
        with torch.inference_mode():
            logits = self._first_logits(image, [cleaned_question(question) for question in questions]).float()
        tokenizer = self.processor.tokenizer
        yes, no = (logits[:, tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
        probabilities: list[float] = torch.sigmoid(yes - no).tolist()  # the softmax's sum cancels out
        return probabilities

    def _first_logits(self, image: npt.NDArray[np.uint8], questions: Sequence[str]) -> "torch.Tensor":
        """Logits (Q, vocabulary) of the first token of each answer."""
        import torch

        model, text = self.model, self.model.config.text_config
        side = {"height": self.image_px, "width": self.image_px}
        pixels = self.processor.image_processor(images=image, size=side, return_tensors="pt")["pixel_values"]  # (1, 3, S, S)
        tokens = self.processor.tokenizer(
            list(questions), padding="longest", truncation=True, max_length=_MAX_QUESTION_TOKENS, return_tensors="pt"
        ).to(model.device)
        tokens.input_ids[:, 0] = text.bos_token_id + 1  # [ENC]
        patches = model.vision_model(pixels.to(model.device, model.dtype), interpolate_pos_encoding=True)[0]  # (1, P, D)
        patches = patches.expand(len(questions), -1, -1)
        read = model.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=model.device),
        )[0]  # (Q, L, D)
        answer = model.text_decoder(
            input_ids=torch.full((len(questions), 1), text.bos_token_id, device=model.device),  # [DEC]
            encoder_hidden_states=read,
            encoder_attention_mask=tokens.attention_mask,
        )
        logits: torch.Tensor = answer.logits[:, 0]
        return logits


def load_blip(source: JudgeModel, placement: Placement, *, image_px: int) -> BlipVqa:
    """Reads the weights. Raises UserError for another kind of model."""
    from transformers import BlipForQuestionAnswering, BlipProcessor

    model = source.load(BlipForQuestionAnswering.from_pretrained, dtype=placement.dtype, use_safetensors=True)
    processor = source.load(BlipProcessor.from_pretrained)
    tokenizer = processor.tokenizer
    unknown = [word for word in ("yes", "no") if tokenizer.convert_tokens_to_ids(word) == tokenizer.unk_token_id]
    if source.model_type != MODEL_TYPE or unknown:
        found = f"its tokenizer does not know {unknown[0]!r}" if unknown else f"it is a {source.model_type}"
        raise UserError(f"{source.name} is no BLIP for visual question answering: {found}")
    return BlipVqa(model.to(placement.device).eval(), processor, image_px=image_px)


def cleaned_question(question: str) -> str:
    """As BLIP's own training saw questions: in lower case, without the signs that it leaves out."""
    return _NOT_ASKED.sub("", question.lower()).rstrip(" ")
