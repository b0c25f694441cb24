"""How a captioning run is planned, or imported from captions that exist."""
