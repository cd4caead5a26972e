//! Memory on demand, for `image-serve --lazy`.
//!
//! `criu restore --lazy-pages` leaves private anonymous memory out, and hands the descriptors of
//! each process's memory to whoever listens on `lazy-pages.socket`. This crate is who listens:
//!
//! - [`split`] parts a pagemap into what CRIU restores and what comes late;
//! - [`Pages`] is what comes late, in the regular file that the image is;
//! - [`Server`] listens, answers faults, fills the rest, and follows what the processes do to their
//!   memory;
//! - [`Keeper`] is a process that kills them, if we die, before they can read zeros.
//!
//! image-serve(1) says what the user sees; docs/design.md section 10 has CRIU's side.
//!
//! ```
//! // A pagemap with two pages, of which the second may come late.
//! let file = b"\x19\x43\x56\x54\x25\x40\x08\x56\
//!     \x02\0\0\0\x08\x01\
//!     \x08\0\0\0\x08\x80\x20\x10\x01\x20\x04\x28\
//!     ";
//! assert!(lazy_pages::split(file, 4096).is_err(), "it is cut short");
//! ```

mod connection;
mod error;
mod image;
mod keeper;
mod layout;
mod pagemap;
mod pages;
mod ranges;
mod server;
mod space;
mod tree;
mod work;

pub use error::Error;
pub use image::{ImageFile, PagesImage, Place};
pub use keeper::Keeper;
pub use pagemap::{Late, Pagemap, PagemapError, split};
pub use pages::Pages;
pub use server::{Moment, Server, check};
