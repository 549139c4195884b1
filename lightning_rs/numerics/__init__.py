"""Root finding, quadrature, tables and safe rounding: knows no evidence and no certificate."""
