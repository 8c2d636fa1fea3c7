//! The document as written: serde only, every unknown key an error, no defaults decided here twice.
