"""What a finished study tells: tables, pictures, the HTML page."""
