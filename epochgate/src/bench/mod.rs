//! What the benches of the gateway share: servers as processes of their own, their CPU time and memory as the system
//! counts them, the load profiles, and the arithmetic of fair comparisons. It sees a server only from outside.

pub(crate) mod child;
pub(crate) mod fio;
pub(crate) mod gateway;
pub(crate) mod image;
pub(crate) mod interrupt;
pub(crate) mod machine;
pub(crate) mod output;
pub(crate) mod plot;
pub(crate) mod proc;
pub(crate) mod profile;
pub(crate) mod ratio;
pub(crate) mod server;
