"""Licences of released weights, as their publishers state them, and which of them restrict what may be done with a model
that starts from them. What a file says of itself goes before this list, and this is no legal advice.
"""

from __future__ import annotations

PUBLISHED = {
    "dinov2": "apache-2.0",
    "dinov2_registers": "apache-2.0",
    "dinov2_hf": "apache-2.0",
    "dinov2_with_registers_hf": "apache-2.0",
    "dinov3": "dinov3-license",
    "dinov3_vit": "dinov3-license",
    "ibot": "apache-2.0",
    "mugs": "apache-2.0",
    "mae": "cc-by-nc-4.0",
}
"""By layout: that of the family's released files. A file of the layout may come from elsewhere; layouts that several
families share (DINO's, timm's, transformers' ViT) and SelfPatch's stand for none."""

_RESTRICTIVE = {
    "dinov3": "terms of its own: a model built on these weights carries them on",
    "nc": "no commercial use",
    "noncommercial": "no commercial use",
    "research": "research only",
    "nd": "no changed versions may be passed on",
    "sa": "what is built on it must be passed on under the same licence",
    "gpl": "what is built on it must be passed on under the same licence",
    "agpl": "what is built on it must be passed on under the same licence",
    "llama": "terms of its own",
    "other": "terms of its own",
}


def presumed_licence(layout: str) -> str | None:
    """The licence under which files of a layout were released, where that layout belongs to one family.

    >>> presumed_licence("mae")
    'cc-by-nc-4.0'
    """
    return PUBLISHED.get(layout)


def restriction(licence: str) -> str | None:
    """What a licence is known to restrict, in words; None for those that are known to or seem to allow anything.

    >>> restriction("cc-by-nc-4.0")
    'no commercial use'
    """
    words = "".join(c if c.isalnum() else " " for c in licence.lower()).replace(
        "non commercial", "noncommercial"
    )
    said = [told for word, told in _RESTRICTIVE.items() if word in words.split()]
    return "; ".join(dict.fromkeys(said)) or None


def in_words(stated: str | None, layout: str) -> str:
    """What is known of the licence of weights, for whoever starts from them; empty where nothing is."""
    licence = stated or presumed_licence(layout)
    if not licence:
        return ""
    origin = "" if stated else f", as far as files of the {layout} layout are the released ones"
    limits = restriction(licence)
    warning = f": {limits}; the model that comes out is bound by that too" if limits else ""
    return f"weights under the licence '{licence}'{origin}{warning}"
