"""Whatever comes in becomes one graph at one opset. The only home of protobuf in `deploy`."""
