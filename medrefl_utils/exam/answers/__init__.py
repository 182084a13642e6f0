"""The answer reader: which option a response chooses, by rules alone.

``reader`` decides. It asks ``thinking`` for the visible text, ``statements`` and ``languages`` for explicit statements,
``opinions`` for those that are only reported, ``retractions`` for what is retracted, and ``verdicts``, ``hints`` and
``refusals`` where nothing is stated. ``options`` reads one position, ``text`` normalises, ``words`` is the table of
languages. Public names are imported from ``medrefl_utils.exam``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "reader": ["EXPLICIT", "extract_answer", "states_answer"],
        "thinking": ["split_thinking"],
    },
)
