"""`python -m hub_upload`: fetch, convert, bundle, verify and publish models on the Hugging Face Hub."""
