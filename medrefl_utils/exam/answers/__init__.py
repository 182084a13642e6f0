"""The answer reader: which option a response chooses, by rules alone.

``reader`` decides. It asks ``thinking`` for the visible text; ``statements``, ``json_objects`` and ``languages`` for
explicit statements; ``opinions`` for those that are only reported; ``retractions`` and ``turns`` for what becomes of
them later. Where nothing is stated, ``implied`` asks ``hints``, ``verdicts``, ``reviews`` and ``mentions``, and
``refusals`` takes out what is only mentioned. ``options`` reads one position, ``text`` normalises, ``words`` is the
table of languages. Public names are imported from ``medrefl_utils.exam``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "reader": ["EXPLICIT", "extract_answer", "states_answer"],
        "thinking": ["split_thinking"],
    },
)
