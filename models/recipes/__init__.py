"""How each bundled model is made: one module per package, ``demo_mil`` makes ``demo-mil``.

A recipe has ``make(shop)``: it trains with the help of :class:`workshop.Workshop` and ends with
``shop.publish``. ``models/make.py`` finds it by its name; nothing else has to be told.
"""
