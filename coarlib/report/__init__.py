"""What people look at: figures (matplotlib) and the one-file HTML report; the ``report`` extra.

``plots`` draws one figure of the report each; ``inputs`` collects what a report is about;
``health``, ``learning`` and ``strongest`` compute; ``sections`` and ``page`` write the HTML.
"""
