//! Pointers that C passes. Each is checked for null and alignment, and each length for overflow;
//! that the memory behind is what the header says is the caller's promise.

#![expect(unsafe_code, reason = "C passes pointers")]

use super::failure::Failure;
use std::ffi::{CStr, OsStr, c_char};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::slice;

fn check<T>(pointer: *const T, what: &str) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(format_args!("`{what}` is null")));
    }
    if !pointer.is_aligned() {
        return Err(Failure::argument(format_args!("`{what}` is not aligned")));
    }
    Ok(())
}

/// # Safety
/// The pointer is null, or to a `T` that lives as long as `'a` and is not written meanwhile.
pub(super) unsafe fn borrow<'a, T>(pointer: *const T, what: &str) -> Result<&'a T, Failure> {
    check(pointer, what)?;
    // SAFETY: it is neither null nor unaligned, as was checked, and by this function's contract it
    // points to a live `T`.
    Ok(unsafe { &*pointer })
}

/// Where a result goes.
///
/// # Safety
/// The pointer is null, or to memory for a `T` that nothing else uses during `'a`.
pub(super) unsafe fn out<'a, T>(
    pointer: *mut T,
    what: &str,
) -> Result<&'a mut MaybeUninit<T>, Failure> {
    check(pointer, what)?;
    // SAFETY: it is neither null nor unaligned, as was checked; by this function's contract it is
    // to memory of a `T`, which need not be initialized, and nothing else uses it.
    Ok(unsafe { &mut *pointer.cast::<MaybeUninit<T>>() })
}

fn check_slice<T>(pointer: *const T, len: usize, what: &str) -> Result<(), Failure> {
    check(pointer, what)?;
    let bytes = len.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
    if bytes.is_none() {
        return Err(Failure::argument(format_args!("`{what}` cannot have {len} items")));
    }
    Ok(())
}

/// Null is allowed where the length is 0.
///
/// # Safety
/// The pointer is null, or to `len` items that live as long as `'a` and are not written meanwhile.
pub(super) unsafe fn items<'a, T>(
    pointer: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    check_slice(pointer, len, what)?;
    // SAFETY: it is neither null nor unaligned, and the length in bytes fits `isize`, as was
    // checked; by this function's contract there are `len` live items.
    Ok(unsafe { slice::from_raw_parts(pointer, len) })
}

/// Where several results go.
///
/// # Safety
/// The pointer is null, or to memory for `len` items that nothing else uses during `'a`.
pub(super) unsafe fn items_out<'a, T>(
    pointer: *mut T,
    len: usize,
    what: &str,
) -> Result<&'a mut [MaybeUninit<T>], Failure> {
    check_slice(pointer, len, what)?;
    // SAFETY: it is neither null nor unaligned, and the length in bytes fits `isize`, as was
    // checked; by this function's contract the memory is there and nothing else uses it. It need
    // not be initialized.
    Ok(unsafe { slice::from_raw_parts_mut(pointer.cast::<MaybeUninit<T>>(), len) })
}

/// A string that may be missing.
///
/// # Safety
/// The pointer is null, or to a string with a NUL at its end, which lives as long as `'a` and is
/// not written meanwhile.
unsafe fn bytes<'a>(pointer: *const c_char) -> Option<&'a [u8]> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: it is not null, and by this function's contract it is to a string with its NUL.
    Some(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}

/// A path that may be missing.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn path<'a>(pointer: *const c_char) -> Option<&'a Path> {
    // SAFETY: the contract is the same.
    let bytes = unsafe { bytes(pointer) };
    bytes.map(|bytes| Path::new(OsStr::from_bytes(bytes)))
}

/// UTF-8 text that may be missing.
///
/// # Safety
/// As for [`bytes`].
pub(super) unsafe fn text<'a>(
    pointer: *const c_char,
    what: &str,
) -> Result<Option<&'a str>, Failure> {
    // SAFETY: the contract is the same.
    let bytes = unsafe { bytes(pointer) };
    let text = bytes.map(std::str::from_utf8).transpose();
    text.map_err(|error| Failure::argument(format_args!("`{what}` is not UTF-8: {error}")))
}

/// Hands an object to C, which frees it with [`free`].
pub(super) fn give<T>(out: &mut MaybeUninit<*mut T>, object: T) {
    out.write(Box::into_raw(Box::new(object)));
}

/// Frees an object. Null is allowed.
///
/// # Safety
/// The pointer is null, or from [`give`] and freed only here, once, when nothing uses the object.
pub(super) unsafe fn free<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // SAFETY: by this function's contract it came from `Box::into_raw` in `give`, and this is
        // the only call for it.
        drop(unsafe { Box::from_raw(pointer) });
    }
}
