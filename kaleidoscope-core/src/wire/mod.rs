//! Pages over sockets.

pub mod transport;
