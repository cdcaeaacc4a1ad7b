"""A second process that predicts, trains and evaluates, so that the window stays responsive.

It can be killed, or killed by the system, without harm to the window and to finished results.
``messages`` is the language both sides speak, ``jobs`` what the worker can do, ``client`` the
window's end.
"""
