"""Install medrefl as the Colab notebooks do, among the versions of Colab's runtime, and run the chain there."""
