"""Functions of the lmms-eval tasks in this folder, which read a line of a question file; paths are relative to ROOT."""

from PIL import Image

ROOT = "runs/questions"


def picture(document):
    return [Image.open(f"{ROOT}/{document['image']}").convert("RGB")]


def clip(document):
    return [f"{ROOT}/{document['video']}"]


def choices(document):
    return document["choices"]


def answer_index(document):
    return document["choices"].index(document["answer"])


def right(document, results):
    return {"exact": float(results[0].strip() == document["answer"])}


def mean(values):
    return sum(values) / len(values)
