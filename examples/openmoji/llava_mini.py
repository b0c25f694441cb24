"""llava-mini: the architecture and processor of LLaVA 1.5 at the scale of the small world.

A CLIP vision tower sees 64 x 64 pixels as 64 patches, a two-layer projector maps them to the width of a Llama decoder of
four layers. Both are the classes of transformers that the 7B checkpoints use, so nothing in the captioner is special.
"""

from pathlib import Path
from shutil import copymode
from typing import TYPE_CHECKING

from examples.openmoji.backgrounds import IMAGE_SIZE_PX

if TYPE_CHECKING:
    from transformers import CLIPVisionConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

PATCH_SIZE_PX = 8
NUM_IMAGE_TOKENS = (IMAGE_SIZE_PX // PATCH_SIZE_PX) ** 2
_VISION_WIDTH, _VISION_LAYERS, _VISION_HEADS = 192, 6, 6
_TEXT_WIDTH, _TEXT_LAYERS, _TEXT_HEADS, _TEXT_MLP_WIDTH = 192, 4, 6, 512
_MAX_TOKENS = 512
_WEIGHTS = "model.safetensors"
_OWN_TOWER, _HUB_TOWER = "vision_tower.", "vision_tower.vision_model."

# The prompts it was trained on; each asks for a target of a different length.
PROMPTS = {
    "dense": "Describe this image and its style in a very detailed manner",
    "medium": "Describe this image in one or two sentences",
    "short": "Name what this image shows in a few words",
}
IMAGE_TOKEN, BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, UNK_TOKEN = "<image>", "<s>", "</s>", "<pad>", "<unk>"
SPECIAL_TOKENS = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN, UNK_TOKEN, IMAGE_TOKEN)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT: {% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% if message['role'] == 'user' %} {% else %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def chat_text(prompt: str) -> str:
    """Text that the processor makes from one image and a prompt, with a token for each patch: the input of the decoder."""
    return f"{BOS_TOKEN}USER: {IMAGE_TOKEN * NUM_IMAGE_TOKENS}\n{prompt} ASSISTANT:"


def vision_config() -> "CLIPVisionConfig":
    """The vision tower."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=_VISION_WIDTH,
        intermediate_size=4 * _VISION_WIDTH,
        num_hidden_layers=_VISION_LAYERS,
        num_attention_heads=_VISION_HEADS,
        image_size=IMAGE_SIZE_PX,
        patch_size=PATCH_SIZE_PX,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast") -> "LlavaForConditionalGeneration":
    """A model with random weights (from torch's generator) in float32, for this tokenizer."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=_TEXT_MLP_WIDTH,
        num_hidden_layers=_TEXT_LAYERS,
        num_attention_heads=_TEXT_HEADS,
        num_key_value_heads=_TEXT_HEADS,
        max_position_embeddings=_MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return LlavaForConditionalGeneration(config)


def build_processor(tokenizer: "PreTrainedTokenizerFast") -> "LlavaProcessor":
    """Images of any size are resized to 64 x 64, which leaves scenes as they are; tokens are padded on the left."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = {"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX}
    image_processor = CLIPImageProcessor(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )


def hub_name(name: str) -> str:
    """Name, in the hub's LLaVA 1.5 files, of a tensor that transformers 5 saves under `name`; the hub's own names stay.

    transformers reads both. vLLM 0.32 reads only the hub's: there the vision tower has one level more.
    """
    if name.startswith(_HUB_TOWER) or not name.startswith(_OWN_TOWER):
        return name
    return _HUB_TOWER + name.removeprefix(_OWN_TOWER)


def use_hub_names(folder: Path) -> None:
    """Rewrites the weights in a folder under the hub's names. The tensors stay the same, bit for bit."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    path, partial = folder / _WEIGHTS, folder / f"{_WEIGHTS}.partial"
    with safe_open(path, framework="pt") as file:
        tensors = {hub_name(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    save_file(tensors, partial, metadata=metadata)
    copymode(path, partial)
    partial.replace(path)
