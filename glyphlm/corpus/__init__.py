"""Files, folders, data sets of the Hub and benchmark files read as documents and questions."""
