"""Moving bytes: worker processes that fetch parts, check them and write them to their place."""
