"""Data: `source` of whatever holds examples; digits in the package, IDX and NPZ files, images, Friedman's regression."""

from typing import TYPE_CHECKING

from bitsback.lazy import attach

if TYPE_CHECKING:
    from bitsback.data._dataset import Dataset as Dataset
    from bitsback.data._dataset import Examples as Examples
    from bitsback.data._dataset import Preprocessing as Preprocessing
    from bitsback.data._source import source as source
    from bitsback.data.settings import AnyDataSettings as AnyDataSettings
    from bitsback.data.settings import DataSettings as DataSettings
    from bitsback.data.settings import DigitsSettings as DigitsSettings
    from bitsback.data.settings import FriedmanSettings as FriedmanSettings
    from bitsback.data.settings import IdxSettings as IdxSettings
    from bitsback.data.settings import ImagesSettings as ImagesSettings
    from bitsback.data.settings import NpzSettings as NpzSettings
    from bitsback.data.settings import registry as registry

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "_dataset": ["Dataset", "Examples", "Preprocessing"],
        "_source": ["source"],
        "settings": [
            "AnyDataSettings",
            "DataSettings",
            "DigitsSettings",
            "FriedmanSettings",
            "IdxSettings",
            "ImagesSettings",
            "NpzSettings",
            "registry",
        ],
    },
)
