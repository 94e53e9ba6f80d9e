"""What the tasks beside it read of a line; paths begin at runs/questions."""

from PIL import Image

ROOT = "runs/questions"


def picture(document):
    return [Image.open(f"{ROOT}/{document['image']}").convert("RGB")]


def clip(document):
    return [f"{ROOT}/{document['video']}"]


def choices(document):
    return document["choices"]


def place(document):
    return document["choices"].index(document["answer"])


def right(document, results):
    return {"exact": float(results[0].strip() == document["answer"])}


def mean(values):
    return sum(values) / len(values)
