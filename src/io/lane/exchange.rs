//! A lane as an async conversation, for the few frames before a driver owns it.

use std::future::poll_fn;
use std::io;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use super::inbound::FrameError;
use super::stream::StreamLane;

impl<S: AsyncRead + AsyncWrite + Unpin> StreamLane<S> {
    /// Queues a whole frame, also somewhat above the high-water mark; returns whether there
    /// was room.
    pub fn push_control(&mut self, frame: &[u8]) -> bool {
        let Some(room) = self.reserve_control(frame.len()) else {
            return false;
        };
        room.copy_from_slice(frame);
        self.commit(frame.len());
        true
    }

    /// Writes everything that is queued.
    ///
    /// # Errors
    ///
    /// What the stream reports.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for the next whole frame and copies it out; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// What the stream reports, or that what arrived is no frame.
    pub async fn read_frame(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(Some(frame.to_vec()));
            }
            if poll_fn(|cx| self.poll_read(cx)).await? == 0 {
                // Says whether the stream ended inside a frame.
                return Ok(self.next_frame()?.map(|frame| frame.to_vec()));
            }
        }
    }
}

/// Why no frame could be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What arrived is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}
