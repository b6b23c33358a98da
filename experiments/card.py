"""README.md of an exported folder: the model card, with code that runs in that folder."""

import json
import os.path as osp

from dassl.files import atomic_write, visible

LOADS = {
    "openai": """import clip, torch
from PIL import Image

model, preprocess = clip.load("model.pt", device="cpu")  # which rounds the weights to fp16 once
model.load_state_dict(torch.load("model.pt", weights_only=True))  # as they are
image, text = preprocess(Image.open("image.jpg"))[None], clip.tokenize(PROMPTS)
probabilities = model(image, text)[0].softmax(dim=1)""",
    "open_clip": """import open_clip
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")
text = open_clip.get_tokenizer("local-dir:.")(PROMPTS)
logits, _ = model.eval().get_logits(preprocess(Image.open("image.jpg"))[None], text)
probabilities = logits.softmax(dim=1)""",
    "transformers": """from PIL import Image
from transformers import CLIPModel, CLIPProcessor

model, processor = CLIPModel.from_pretrained("."), CLIPProcessor.from_pretrained(".")
inputs = processor(text=PROMPTS, images=Image.open("image.jpg"), padding=True, return_tensors="pt")
probabilities = model(**inputs).logits_per_image.softmax(dim=1)""",
    "onnx": """import json, numpy, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
meta = {key: value for key, value in session.get_modelmeta().custom_metadata_map.items()}
classes, given = json.loads(meta["classes"]), json.loads(meta["input"])
side, image = given["SIZE"][0], Image.open("image.jpg").convert("RGB")
size = [side * pixels // min(image.size) for pixels in image.size]  # the shorter side, then the centre
left, top = (round((pixels - side) / 2) for pixels in size)
image = image.resize(size, Image.Resampling[given["INTERPOLATION"].upper()]).crop((left, top, left + side, top + side))
pixels = (numpy.asarray(image) / 255 - given["PIXEL_MEAN"]) / given["PIXEL_STD"]
(logits,) = session.run(None, {"image": pixels.transpose(2, 0, 1)[None].astype("float32")})
print(classes[logits.argmax()])""",
}
LIBRARIES = {"openai": "clip", "open_clip": "open_clip", "transformers": "transformers", "onnx": "onnx"}


def write_card(facts: dict, folder: str) -> None:
    """Args: facts: see `export.describe`."""
    with atomic_write(osp.join(folder, "README.md")) as f:
        f.write(card(facts).encode())


def card(facts: dict) -> str:
    to, given = facts["format"], facts["input"]
    strength = "" if facts["strength"] is None else f" at strength {facts['strength']:g}"
    tag = "image-classification" if to == "onnx" else "zero-shot-image-classification"
    lines = [
        f"---\nlicense: other\nlibrary_name: {LIBRARIES[to]}\npipeline_tag: {tag}\ntags: [clip]\n---",
        f"# CLIP tuned by {facts['trainer']} on {facts['dataset']}",
        f"CLIP `{visible(facts['backbone'])}`, adapted by {facts['trainer']}{strength} on {facts['dataset']}: "
        + ("images to logits of its classes, the class features inside." if to == "onnx" else "a plain CLIP."),
        "## Figures",
        table(facts["figures"]) or "None: it was not evaluated as it is here.",
        "## How to load it",
        *loading(facts),
        "## Images",
        f"Shorter side to {max(given['SIZE'])} pixels ({given['INTERPOLATION']}), the central {given['SIZE'][0]} x "
        f"{given['SIZE'][1]}, values in [0, 1], mean {given['PIXEL_MEAN']}, standard deviation {given['PIXEL_STD']}.",
        "## Classes",
        f"{len(facts['classes'])}: " + ", ".join(f"`{visible(name)}`" for name in facts["classes"]),
        "## Licence",
        f"The licences of CLIP `{visible(facts['backbone'])}` and of {facts['dataset']} hold for the weights. OrthCR, "
        "which made them, is under the MIT licence; it is not needed to run them.",
    ]
    return "\n\n".join(lines) + "\n"


def loading(facts: dict) -> list[str]:
    to, templates = facts["format"], facts["templates"]
    code = LOADS[to]
    if to != "onnx":
        prompts = [templates[0].replace("{}", name.replace("_", " ")) for name in facts["classes"][:3]]
        code = code.replace("PROMPTS", json.dumps(prompts, ensure_ascii=False))
    told = [f"In this folder:\n\n```python\n{code}\n```"]
    if to != "onnx":
        told.append(
            f"Its classes were trained with the prompt{'s' * (len(templates) > 1)} " + ", ".join(map(str, templates))
        )
    if to == "onnx":
        opset = f'`model.onnx`: opset {facts["opset"]}, float32; "image" [batch, 3, {facts["input"]["SIZE"][0]}, '
        told.append(opset + f'{facts["input"]["SIZE"][1]}] to "logits" [batch, {len(facts["classes"])}].')
    if to == "open_clip":
        name, add = facts["open_clip_name"], ""
        if not name:
            name, add = "tuned_clip", 'open_clip.add_model_config("tuned_clip.json")\n'
        call = f'open_clip.create_model_and_transforms("{name}", pretrained="open_clip_model.safetensors")'
        told.append(f"Or by the architecture's name:\n\n```python\nimport open_clip\n\n{add}{call}\n```")
    return told


def table(rows: list[dict]) -> str:
    if not rows:
        return ""
    heads = ("dataset", "classes", "shots", "seed", "split", "accuracy")
    rows = [row | {"shots": "all" if row["shots"] == -1 else row["shots"]} for row in rows]
    cells = [["" if row[head] is None else str(row[head]) for head in heads] for row in rows]
    for row, given in zip(cells, rows, strict=True):
        row[-1] = "" if given["accuracy"] is None else f"{given['accuracy']:.1f} %"
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *cells])
