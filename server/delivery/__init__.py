"""Published sets on their way to devices: which bytes, under which headers, from where."""
