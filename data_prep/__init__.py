"""Programs that make datasets: raw sources in, records folders out."""
