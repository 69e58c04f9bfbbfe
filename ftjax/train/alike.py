"""In what runs of one program may differ, beside their seeds."""

DATA = ("learning_rate", "weight_decay")  # fields of the optimizer, if they are not 0
PADDED = ("adamw", "adam", "sgd")  # optimizers that treat every number for itself: of a smaller rank zeros stay zeros
