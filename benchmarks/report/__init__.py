"""What is made of committed rows: tables of the documents, and figures."""
