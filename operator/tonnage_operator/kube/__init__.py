"""The only client of the Kubernetes API in the operator: requests, retries, watches. It knows no Tonnage."""
