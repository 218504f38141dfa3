//! Receives a large payload from the socket straight into the buffer that the export keeps. This is the one place of the connection
//! with `unsafe`: zeroing tens of MiB just to overwrite them would cost a tenth of the throughput.

use std::io;

use super::socket::Socket;

/// Fills `payload` up to `len` bytes from the socket. What it already holds stays in front.
///
/// # Errors
/// `UnexpectedEof` when the stream ends before; otherwise as recv(2).
pub fn receive(socket: &Socket, payload: &mut Vec<u8>, len: usize) -> io::Result<()> {
    payload.reserve_exact(len.saturating_sub(payload.len()));
    while payload.len() < len {
        let held = payload.len();
        let spare = payload.spare_capacity_mut();
        let room = spare.len().min(len - held);
        let Some(target) = spare.get_mut(..room) else {
            break;
        };
        let received = socket.recv_uninit(target)?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: recv_uninit initialised the first `received` bytes of the spare capacity, and `received <= room` lies within it.
        unsafe { payload.set_len(held + received) };
    }
    Ok(())
}
