//! Setters of options, for code outside the crate: structs that can grow have no literals there.

/// Writes a setter for each listed field, which returns the changed value.
macro_rules! setters {
    ($type:ty { $($(#[$attribute:meta])* $field:ident: $of:ty),+ $(,)? }) => {
        impl $type {
            $(
                #[doc = concat!("The same with another [`", stringify!($field), "`](Self#structfield.", stringify!($field), ").")]
                $(#[$attribute])*
                #[must_use]
                pub fn $field(mut self, $field: $of) -> Self {
                    self.$field = $field;
                    self
                }
            )+
        }
    };
}

pub(crate) use setters;
