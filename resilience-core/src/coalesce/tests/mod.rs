mod flights;
