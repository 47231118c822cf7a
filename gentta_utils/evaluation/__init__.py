"""A method meets a stream: runs, their records, tables of records, intervals, and the settings chosen from them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["chosen"],
    submod_attrs={
        "chosen": ["choice", "chosen_window", "purifier", "rival", "selection", "tuned"],
        "evaluate": ["run"],
        "records": ["Records"],
        "rows": ["accuracy", "distinct", "is_clean", "pick", "shift_of", "versus"],
        "statistics": ["Interval", "accuracy_interval", "gain", "paired_interval", "protocol_line", "summary"],
        "tables": ["results", "table"],
    },
)
