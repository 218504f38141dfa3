//! Polls a future of the real code without a runtime: it is ready when the turns that it waits for have been taken.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// What a future said.
#[derive(Debug)]
pub enum Answer<T> {
    /// Not yet.
    Pending,
    /// This.
    Ready(T),
}

/// Asks once.
pub fn poll<F: Future + ?Sized>(future: &mut Pin<Box<F>>) -> Answer<F::Output> {
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Pending => Answer::Pending,
        Poll::Ready(output) => Answer::Ready(output),
    }
}
