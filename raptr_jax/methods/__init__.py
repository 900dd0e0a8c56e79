"""What each step trains: schedules, policies, growth and their draws."""
