"""The README.md of an exported folder: a model card, with code that runs in that folder."""

import json
import os.path as osp

from dassl.infrastructure.files import atomic_write, visible

CARD_FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]  # formats that every Pillow has; EPS would run a program
# This function reads pictures as predict.py does: `dassl.utils.as_photo`, then the test transform up to the crop
OPEN_IMAGE = """import json
from PIL import Image, ImageOps

facts = json.load(open("export.json"))
classes, side = facts["classes"], facts["input"]["SIZE"][0]
resample = Image.Resampling[facts["input"]["INTERPOLATION"].upper()]


def open_image(path):
    \"\"\"Return a picture upright, on white, resized to the size of the model's images.\"\"\"
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS))
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has pixels of mode {image.mode}: convert it to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if facts["input"]["RESIZE"] == "squash":
        return image.convert("RGB").resize((side, side), resample)
    width, height = (side * pixels // min(image.size) for pixels in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.convert("RGB").resize((width, height), resample).crop((left, top, left + side, top + side))
"""
# The card's program: an entry of LOADS, then one of ONE_PROMPT, or SEVERAL_PROMPTS and AVERAGE for several prompts a
# class
LOADS = {
    "openai": """import clip, torch
from torchvision.transforms.functional import normalize, to_tensor

model, _ = clip.load("model.pt", device="cpu")  # rounds the weights to fp16
model.load_state_dict(torch.load("model.pt", weights_only=True))  # restores the float32 weights
image = to_tensor(open_image("image.jpg"))
image = normalize(image, facts["input"]["PIXEL_MEAN"], facts["input"]["PIXEL_STD"])[None]
""",
    "open_clip": """import open_clip, torch

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
tokenizer = open_clip.get_tokenizer("local-dir:.")
model.eval()
image = preprocess(open_image("image.jpg"))[None]
""",
    "transformers": """import torch
from transformers import CLIPModel, CLIPProcessor

model, processor = CLIPModel.from_pretrained("."), CLIPProcessor.from_pretrained(".")
image = open_image("image.jpg")
""",
    "peft": """import torch
from peft import PeftModel
from transformers import CLIPModel, CLIPProcessor

model = PeftModel.from_pretrained(CLIPModel.from_pretrained("BASE"), ".")  # .merge_and_unload() gives a CLIPModel
model, processor = model.eval(), CLIPProcessor.from_pretrained(".")
image = open_image("image.jpg")
""",
    "onnx": """import os
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else onnxruntime sends usage data
import numpy, onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
pixels = numpy.asarray(open_image("image.jpg")) / 255
pixels = (pixels - facts["input"]["PIXEL_MEAN"]) / facts["input"]["PIXEL_STD"]
(logits,) = session.run(None, {"image": pixels.transpose(2, 0, 1)[None].astype("float32")})
weights = numpy.exp(logits - logits.max(axis=1, keepdims=True))
probabilities = weights / weights.sum(axis=1, keepdims=True)
""",
}
ONE_PROMPT = {
    "openai": """with torch.no_grad():
    text = clip.tokenize([prompts[0] for prompts in facts["prompts"]], model.context_length)
    logits, _ = model(image, text)
""",
    "open_clip": """with torch.no_grad():
    logits, _ = model.get_logits(image, tokenizer([prompts[0] for prompts in facts["prompts"]]))
""",
    "transformers": """prompts = [prompts[0] for prompts in facts["prompts"]]
with torch.no_grad():
    logits = model(**processor(text=prompts, images=image, padding=True, return_tensors="pt")).logits_per_image
""",
    "peft": """prompts = [prompts[0] for prompts in facts["prompts"]]
with torch.no_grad():
    output = model(**processor(text=prompts, images=image, padding=True, return_tensors="pt"))
logits = facts["logit_scale"] * output.image_embeds @ output.text_embeds.T  # an adapter has no logit scale
""",
}
SEVERAL_PROMPTS = {
    "openai": """with torch.no_grad():
    tokens = [clip.tokenize(prompts, model.context_length) for prompts in facts["prompts"]]
    features = torch.stack([model.encode_text(t) for t in tokens])
    image = model.encode_image(image)
""",
    "open_clip": """with torch.no_grad():
    features = torch.stack([model.encode_text(tokenizer(prompts)) for prompts in facts["prompts"]])
    image = model.encode_image(image)
""",
    "transformers": """features = []
with torch.no_grad():
    for prompts in facts["prompts"]:
        output = model(**processor(text=prompts, images=image, padding=True, return_tensors="pt"))
        features.append(output.text_embeds)
features, image = torch.stack(features), output.image_embeds
""",
}
AVERAGE = """features = torch.nn.functional.normalize(features, dim=-1).mean(dim=1)  # of each class
features, image = (torch.nn.functional.normalize(x, dim=-1) for x in (features, image))
logits = model.logit_scale.exp().detach() * image @ features.T
"""
SHOW = """print(classes[probabilities[0].argmax()], f"{float(probabilities[0].max()):.1%}")"""
LIBRARIES = {  # {format: library}
    "openai": "clip",
    "open_clip": "open_clip",
    "transformers": "transformers",
    "peft": "peft",
    "onnx": "onnx",
}
FORMATS = tuple(LIBRARIES)
MOST_PROMPTS = 8  # largest number of prompts of a class in the card


def write_card(facts: dict, folder: str) -> None:
    """Write README.md into a folder.

    Args:
        facts: see `exporter.describe`.
        folder: folder of the export.
    """
    with atomic_write(osp.join(folder, "README.md")) as f:
        f.write(card(facts).encode())


def card(facts: dict) -> str:
    """Return the model card in Markdown."""
    format_name, image_input = facts["format"], facts["input"]
    strength = "" if facts["strength"] is None else f" at strength {facts['strength']:g}"
    tag = "image-classification" if format_name == "onnx" else "zero-shot-image-classification"
    kind, base = "a plain CLIP.", ""
    if format_name == "onnx":
        kind = "a classifier that maps images to logits, with fixed class features."
    if format_name == "peft":
        kind = f"an adapter of PEFT for the CLIPModel `{facts['base']}`."
        if "/" in facts["base"]:  # a repository of the Hugging Face Hub
            base = f"\nbase_model: {facts['base']}"
    lines = [
        f"---\nlicense: other\nlibrary_name: {LIBRARIES[format_name]}{base}\npipeline_tag: {tag}\ntags: [clip]\n---",
        f"# CLIP tuned by {facts['trainer']} on {facts['dataset']}",
        f"CLIP `{visible(facts['backbone'])}`, adapted by {facts['trainer']}{strength} on {facts['dataset']}: {kind}",
        "## Figures",
        table(facts["figures"]) or "There is no evaluation of this model.",
        "## How to load it",
        *loading_section(facts),
        "## Images",
        "Images are turned upright by their EXIF, and transparent areas become white. "
        f"{resizing(image_input)} ({image_input['INTERPOLATION']}). Values in [0, 1] are "
        f"normalized by the mean {image_input['PIXEL_MEAN']} and the standard deviation {image_input['PIXEL_STD']}.",
        "## Classes",
        class_list(facts),
        "## Licence",
        f"The licences of CLIP `{visible(facts['backbone'])}` and of {facts['dataset']} apply to the weights. They "
        "were made by OrthCR, which has the MIT licence and is not needed to run them.",
    ]
    return "\n\n".join(lines) + "\n"


def loading_section(facts: dict) -> list[str]:
    """Return the paragraphs on how to load the model; the code in the first one gives the results of predict.py."""
    format_name = facts["format"]
    parts = [f"In this folder:\n\n```python\n{code(facts)}\n```"]
    if facts["temperature"] != 1:
        parts.append(
            f"The logits are divided by the temperature {facts['temperature']:.4g}. It was fitted on validation "
            "images, calibrates the softmax, and does not change the predicted class."
        )
    if format_name == "onnx":
        height, width = facts["input"]["SIZE"]
        parts.append(
            f'`model.onnx` (opset {facts["opset"]}, float32) has the input "image" [batch, 3, {height}, {width}] and '
            f'the output "logits" [batch, {len(facts["classes"])}].'
        )
    if format_name == "open_clip":
        name, add = facts["open_clip_name"], ""
        if not name:  # open_clip has no architecture like this one
            name, add = "tuned_clip", 'open_clip.add_model_config("tuned_clip.json")\n'
        call = f'open_clip.create_model_and_transforms("{name}", pretrained="open_clip_model.safetensors")'
        parts.append(f"Or with the name of the architecture:\n\n```python\nimport open_clip\n\n{add}{call}\n```")
    return parts


def code(facts: dict) -> str:
    """Return a program that classifies image.jpg with the files of the folder."""
    format_name = facts["format"]
    imports, _, load = LOADS[format_name].replace("BASE", facts.get("base", "")).partition("\n\n")
    steps = [f"{imports}\n{OPEN_IMAGE.replace('FORMATS', json.dumps(CARD_FORMATS))}", load]
    if format_name != "onnx":
        has_several_prompts = len(facts["templates"]) > 1
        steps.append(SEVERAL_PROMPTS[format_name] + AVERAGE if has_several_prompts else ONE_PROMPT[format_name])
        steps.append("probabilities = logits.softmax(dim=1)\n")
    return "\n".join([steps[0], "".join(steps[1:]) + SHOW])


def class_list(facts: dict) -> str:
    """Return the list of the classes in Markdown, with their prompts. An ONNX file has no prompts."""
    names = [f"`{visible(name)}`" for name in facts["classes"]]
    if facts["format"] == "onnx":
        return f"{len(names)}: " + ", ".join(names)
    rows = [
        f"| {name} | {'<br>'.join(visible(p) for p in prompts[:MOST_PROMPTS])} |"
        for name, prompts in zip(names, facts["prompts"], strict=True)
    ]
    note = f"{len(names)}, with their prompts."
    if len(facts["templates"]) > MOST_PROMPTS:
        note += f" These are {MOST_PROMPTS} of {len(facts['templates'])} prompts a class; `export.json` has all."
    return "\n".join([note, "", "| class | prompt |", "| --- | --- |", *rows])


def table(rows: list[dict]) -> str:
    """Return results as a Markdown table; "" if there are none."""
    if not rows:
        return ""
    heads = ("dataset", "classes", "shots", "seed", "split", "accuracy")
    cells = []
    for row in rows:
        shots = "all" if row["shots"] == -1 else row["shots"]
        accuracy = None if row["accuracy"] is None else f"{row['accuracy']:.1f} %"
        values = row | {"shots": shots, "accuracy": accuracy}
        cells.append(["" if values[head] is None else str(values[head]) for head in heads])
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *cells])


def resizing(image_input: dict) -> str:
    """Return a description of how pictures get the size of the model's images."""
    height, width = image_input["SIZE"]
    if image_input["RESIZE"] == "squash":
        return f"resized to {height} x {width} pixels"
    return f"shorter side to {max(height, width)} pixels, the central {height} x {width}"
