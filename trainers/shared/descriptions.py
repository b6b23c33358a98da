"""Descriptions: sentences about each class, in most cases written by a language model, from a JSON file.

{"class name": ["sentence", ...], ...}      JSON, as CuPL, CoPrompt and others ship it
"""

import os.path as osp

from dassl.utils import get_most_similar_str_to_a_from_b

from .beside_dassl import read_json, say, visible
from .prompts import replace_underscores

FORM = '{"class name": ["sentence", ...], ...}'
MAX_CHARACTERS, MAX_SENTENCES = 2_000, 1_000  # characters of a sentence; sentences of a class
MAX_NAMES = 5  # names in a message


def read_file(path: str) -> dict[str, list[str]]:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form.
    """
    if not osp.exists(path):
        raise FileNotFoundError(f"there are no descriptions {path}: give a JSON file {FORM} with --descriptions")
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} is no object of class names and sentences: it should read {FORM}")
    for name, sentences in content.items():
        check_sentences(sentences, f'{path}, class "{name[:60]}"')
    return content


def check_sentences(sentences: object, place: str) -> None:
    """Raise ValueError unless these are the sentences of a class."""
    if not isinstance(sentences, list) or not 1 <= len(sentences) <= MAX_SENTENCES:
        raise ValueError(f"{place} must have a list of 1 to {MAX_SENTENCES:,} sentences: add or remove some")
    for text in sentences:
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
            rule = f"needs texts of 1 to {MAX_CHARACTERS:,} characters"
            raise ValueError(f"{place} has {str(text)[:40]!r}, but {rule}: mend it")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{place} has characters that are no text in {ascii(text[:40])}: mend it")


def read_descriptions(path: str, classnames: list[str]) -> list[list[str]]:
    """Return the sentences of each class, and print the names in the file that are none of these classes.

    Names are compared as CLIP reads them: in lower case, with spaces for underscores.

    Args:
        path: path of the file.
        classnames: names of the classes, as the data set writes them.

    Raises:
        FileNotFoundError, ValueError: see `read_file`; also if a class has no sentences, or two names are the same.
    """
    content, name_of_key = read_file(path), {}
    for name in content:
        key = key_of(name)
        if key in name_of_key:
            raise ValueError(f'{path} has "{name_of_key[key]}" and "{name}", which are the same to CLIP: remove one')
        name_of_key[key] = name
    absent = [name for name in classnames if key_of(name) not in name_of_key]
    if absent:
        nearest_key = get_most_similar_str_to_a_from_b(key_of(absent[0]), list(name_of_key))
        missing = f"no sentences for {len(absent)} of {len(classnames)} classes: {format_names(absent)}"
        nearest_name = name_of_key[nearest_key][:60]
        raise ValueError(f'{path} has {missing}; the nearest to the first is "{nearest_name}": add them')
    keys = set(map(key_of, classnames))
    other_names = [name for key, name in name_of_key.items() if key not in keys]
    if other_names:
        say(f"{path} also describes {len(other_names)} classes that are not here: {format_names(other_names)}")
    return [content[name_of_key[key_of(name)]] for name in classnames]


def key_of(name: str) -> str:
    """Return a class name as CLIP reads it."""
    return " ".join(replace_underscores([name])[0].lower().split())


def format_names(names: list[str]) -> str:
    """Return the first names for a message."""
    text = ", ".join(f'"{visible(name[:60])}"' for name in names[:MAX_NAMES])
    return f"{text}, ..." if len(names) > MAX_NAMES else text
