"""results/report.html: the table with its figures and evidence, as one page that loads nothing from elsewhere."""
