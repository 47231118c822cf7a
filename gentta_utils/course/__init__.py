"""What only the notebooks need; a folder `nbNN` for each, with its tables, reports, figures and exercises."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "digits",
        "display",
        "doctor",
        "drawn",
        "exercises",
        "gradcam",
        "map_profiles",
        "nb01",
        "nb02",
        "nb03",
        "nb04",
        "nb05",
        "nb06",
        "nb07",
        "plots",
        "profiles",
        "recheck",
        "side_by_side",
        "tables",
        "trials",
        "widgets",
    ],
    submod_attrs={"doctor": ["environment"], "profiles": ["profile"], "widgets": ["explore"]},
)
