//! The endpoints as they truly are at this moment. For oracles alone: nobody else can see that.

/// All endpoints, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// How each truly is.
    pub endpoints: Vec<Truth>,
}

/// One endpoint as it truly is.
#[derive(Debug, Clone, Copy)]
pub struct Truth {
    /// Calls that it has, and those on their way to it.
    pub in_flight: u32,
    /// Calls that it serves at full speed at a time.
    pub cores: u32,
    /// How fast each of these is now; 0 while it stands still.
    pub speed: f64,
    /// Whether it is there and serves its calls.
    pub serves: bool,
}
