"""What people see: pictures and tables, made from artifacts alone."""
