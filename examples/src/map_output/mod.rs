//! A color map as tables, CSV, JSON and figures.

pub(crate) mod csv;
pub(crate) mod json;
pub(crate) mod outputs;
pub(crate) mod statistics;
pub(crate) mod table;
#[cfg(test)]
pub(crate) mod test_map;
