"""Studio: a page in the browser over runs, data sets and trainings."""
