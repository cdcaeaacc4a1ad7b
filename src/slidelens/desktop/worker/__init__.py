"""A second process that predicts, trains and evaluates, so that the window stays responsive.

It can be killed, by us or the system, without harm to the window and to finished results.
``messages`` is the language of both sides, ``jobs`` what the worker can do, ``client`` the window's
end.
"""
