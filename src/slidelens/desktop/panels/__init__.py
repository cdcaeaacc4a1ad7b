"""The workbench's panels: thin Qt over ``slidelens.desktop.state``."""
