"""A CLIP of a few thousand random weights as transformers saves it, and what it computes.

Runs in the environment of `benchmarks/weights`, in this folder: `python make.py`.
"""

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

torch.manual_seed(0)
small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
model = CLIPModel(
    CLIPConfig(
        projection_dim=12,
        vision_config={**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
        # The size of the real vocabulary would be megabytes.
        text_config={**small, "num_attention_heads": 4, "vocab_size": 100, "eos_token_id": 99},
    )
).eval()
for parameter in model.parameters():
    parameter.data.add_(0.2 * torch.randn_like(parameter))
model.save_pretrained(".")

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
tokens = np.full((3, 77), 99)
tokens[:, 0] = 98
for row, length in enumerate((4, 1, 75)):
    tokens[row, 1 : 1 + length] = rng.integers(0, 98, length)
processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")
with torch.no_grad():
    image_embeddings = model.get_image_features(**pixels)
    text_embeddings = model.get_text_features(input_ids=torch.from_numpy(tokens))


def array(output):
    return getattr(output, "pooler_output", output).numpy()


np.savez(
    "reference.npz",
    images=images,
    tokens=tokens,
    image_embeddings=array(image_embeddings),
    text_embeddings=array(text_embeddings),
)
